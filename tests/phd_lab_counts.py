"""The parameters of the models of phd-lab's configs, counted on its own definitions."""

# Of 10 classes, whatever the definition's default; resnet36_dspl8, which it can't build, is summed by hand.
LINES = """
vgg11t=4639754 vgg13t=4824650 vgg16t=3054410 vgg19t=2363338 vgg19t2=1772746 vgg11_3=16443914
vgg13_3=16628810 vgg16_pruned=5415242 vgg19_EuroSat=3645002 vgg19_EuroSat_Hybrid=10727498
vgg19_EuroSat_Performance=20170826 vgg19_EuroSat_Performance2=20170826 vggresnet2=20437130 vgg11_L=37416970
vgg11_XL=149610506 vgg11_XXL=598327306 vgg13_L=38155402 vgg13_XL=152561930 vgg13_XXL=610128394
vgg16_L=59396746 vgg16_XL=237511946 vgg16_XXL=949897738 vgg19_L=80638090 vgg19_XL=322461962
vgg19_XXL=1289667082 vgg19_gx=1742858 vgg19_se=21370954 vggresnet3=20437130 resnet18_L=44678282
resnet18_XL=178616586 resnet18_XXL=714273290 resnet18_XXXS=45102 resnet34_L=85096074 resnet34_XL=340258058
resnet34_XXL=1360779786 resnet34_XXXS=85022 resnet34_XXXL=5442614282 ResNet18_PC_S=2809866
ResNet18_PC_XS=710826 ResNet18_PC_XXS=182586 ResNet18_PC_XXXS=48786 ResNet18_PC_L=44595786
ResNet18_PC_XL=178154826 ResNet18_PC_XXL=712168266 ResNet18_PC_XXXL=2847776586 ResNet34_PC_S=5338762
ResNet34_PC_XS=1343978 ResNet34_PC_XXS=341338 ResNet34_PC_XXXS=88706 ResNet34_PC_L=85013578
ResNet34_PC_XL=339796298 ResNet34_PC_XXL=1358674762 ResNet34_PC_XXXL=5433683786 PC_ResNet18=11173962
PC_ResNet34=21282122 PC_ResNet50=23520842 PC_ResNet18T=2777674 PC_ResNet34T=2261834 resnet18t=1604682
resnet18t2=158154 resnet18tnoskip=158154 resnet34t=2269514 resnet34t2=158154 resnet50t=2967626
resnet18_ri_performance=4253770 resnet18_ri_performance2=4253770 resnet18_ri_hybrid=1597002
resnet18_ri_efficiency=381258 resnet18noskip_dspl2=1414730 resnet18noskip_dspl3=4219722 resnet24=13966666
resnet24_noskip=11190090 resnet36=23723082 resnet36_dspl8=49999434 resnet1001=165419818 resnet18_se=11443786
resnet18_se_noskip=11269962 resnet18_sa=11182426 resnet18_sa_noskip=11008602 resnet18_sesa=11444570
resnet18_sesa_noskip=11270746 resnet24_se=18136394 resnet24_se_noskip=15359818 resnet24_sa=13967450
resnet24_sa_noskip=11190874 resnet24_sesa=18137178 resnet24_sesa_noskip=15360602 resnet18_o1=11535946
resnet18_o3=15730250 resnet18_o5=24118858 resnet18_o7=36701770 mpnet12_2_2_3_7=9987402 mpnet12_2_3=1555274
mpnet12_2_7=8436554 mpnet18_1_1=535114 mpnet18_1_2_1_3=11528266 mpnet18_1_2_1_7=60352586
mpnet18_1_2_3_7=64546890 mpnet18_1_3=4729418 mpnet18_1_4_1_7=61411530 mpnet18_1_4_3_7=61411530
mpnet18_1_7=8639178 mpnet18_2_1=1235274 mpnet18_2_2_1_7=61052746 mpnet18_2_2_3_7=70817610
mpnet18_2_3=11000138 mpnet18_2_7=59824458 mpnet18_3_5_2_1=9134538 mpnet18_4_1=1235274
mpnet18_4_1_3_7=19632330 mpnet18_4_3=11000138 mpnet18_4_4_1_7=61052746 mpnet18_4_4_3_7=70817610
mpnet18_4_7=59824458 mpnet18_8_1_3_11d2=44854986 mpnet18_8_1_3_7=32173770 mpnet18_8_3=23541578
mpnet29_1_2_3_7=27440458 mpnet36_1_11d2=21320394 mpnet36_1_1_3_11d2=68172106 mpnet36_1_2_3_7=139064650
mpnet36_1_3=11000138 mpnet36_1_4_3_7=132793930 mpnet36_1_7=25700938 mpnet36_1_7d3=25700938
mpnet36_2_7=128071498 mpnet36_4_1_3_7=49235530 mpnet36_4_1_3_7d3=49235530 mpnet36_4_3=23541578
mpnet36_4_7=128071498 mpnet36_8_1_3_11d2=112067146 mpnet36_8_1_3_7=74318410 mpnet36_8_3=48624458
mpnet72_2_2_3_3=232394570 squeezenet11as=2882058 squeezenet11ns=4146442 squeezenet11mp=611146
squeezenet11mpns=1885706 squeezenet11res=624586 squeezenet11dc=2940746 densenet9=416586 densenet18=983754
densenet65=2701002
"""

COUNTS = {name: int(count) for name, _, count in (item.partition("=") for item in LINES.split())}
