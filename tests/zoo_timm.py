"""Networks of timm, without pretrained weights: all families of convolutions with BatchNorm."""

NAMES = """
resnet18 resnet50d wide_resnet50_2 resnetaa50 resnetblur50 resnetrs50 seresnet18
seresnext26d_32x4d skresnet18 ecaresnet26t gcresnet33ts resnest14d res2net50_14w_8s gernet_s
resnetv2_50 tresnet_m cspresnet50 cspdarknet53 cs3darknet_s darknet53 densenet121 dpn68 dla34
hrnet_w18_small selecsls42 vovnet39a ese_vovnet19b_dw hgnetv2_b0 xception41 legacy_xception
legacy_senet154 regnetx_002 regnety_002 regnetz_005 repvgg_a0 mobileone_s0 repghostnet_050
repvit_m1 starnet_s1 efficientnet_lite0 efficientnet_b0 tf_efficientnet_b0 efficientnetv2_rw_t
efficientnet_es mixnet_s mobilenetv2_100 mobilenetv3_small_100 mobilenetv4_conv_small
mnasnet_small fbnetc_100 spnasnet_100 hardcorenas_a hardcorenas_f tinynet_a semnasnet_075
lcnet_050 ghostnet_100 ghostnetv2_100 rexnet_100 lambda_resnet26t fastvit_t8 efficientvit_b0
shvit_s1 mobilevit_xxs
"""
SIZED = {  # the least they take, or what they were made for
    96: ("inception_v3", "inception_v4", "inception_resnet_v2", "nasnetalarge", "pnasnet5large"),
    224: ("efficientformer_l1", "levit_128s", "visformer_tiny", "swiftformer_xs"),
    256: ("botnet26t_256", "halonet26t", "bat_resnext26ts", "sebotnet33ts_256"),
}
SIZED[224] += ("tiny_vit_5m_224", "xcit_nano_12_p16_224")
SIZES = dict.fromkeys(NAMES.split(), 64) | {n: size for size, of in SIZED.items() for n in of}
QUICK = ("efficientnet_lite0", "mobilenetv3_small_100", "regnety_002", "repvgg_a0", "mixnet_s")
